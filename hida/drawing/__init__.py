"""From any photo to what the generator sees, and back: views, their drawing, and their composition."""
