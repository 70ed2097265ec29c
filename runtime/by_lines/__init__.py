"""Cubes of any size restored line by line: a look at every pixel, rows of frames, one product or its parts."""
