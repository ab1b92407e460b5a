"""What the explorer shows of heads and layers, callable from a notebook as well."""
