"""What models are, read without loading them: recipes, files, architectures, prompts and score templates."""
