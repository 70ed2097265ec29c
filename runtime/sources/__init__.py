"""Where lines and cubes come from, one file per kind of source and what it is made of."""
