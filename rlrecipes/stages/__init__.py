"""The stages of a recipe, a module each: they never import each other; they meet on disk."""
