"""`pipeline=rerank`: first stages, which retrieve candidates, and the reranker that scores them."""
