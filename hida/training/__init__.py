"""The parts of the training engine that :mod:`hida.train` puts into one loop."""
