"""Studies: small measurements on data outside the project, whose committed results the documentation refers to."""
