"""Training: :mod:`hida.training.run` is a whole run, :mod:`hida.training.loop` its loop over the iterations."""
