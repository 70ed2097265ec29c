"""Where lines go: the record, restored cubes, quicklooks, publishers. One file per sink."""
