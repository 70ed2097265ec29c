"""Where lines and cubes come from, one file per kind of source."""
