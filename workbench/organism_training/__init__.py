"""What makes the organisms again: their world, their training, their measured card. Nothing of it is needed to use
them."""
