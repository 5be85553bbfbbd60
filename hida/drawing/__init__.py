"""Draw any photo: cut it into views that the generator takes, draw them, and join the drawings into one picture."""
