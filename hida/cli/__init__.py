"""The commands: one module each, with ``main(argv)``; heavy packages are imported after the arguments are parsed."""
