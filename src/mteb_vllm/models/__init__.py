"""Read models without loading them: recipes, files, architectures, prompts and score templates."""
