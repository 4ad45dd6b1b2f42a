"""`pipeline=rerank`: first stages, which retrieve candidates, and the pipeline that reranks them."""
