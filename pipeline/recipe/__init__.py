"""What a recipe may say: its schema, cards, prompts and names."""
