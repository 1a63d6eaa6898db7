"""Engines, loop and trace store, shared by generate and eval."""
