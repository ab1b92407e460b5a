"""What the screens share: looks, components, forms, the view of a run."""
