"""What a recipe costs: counted work, and what known hardware can do."""
