"""What flies: prompt metrics, bundles, engines, tiles, files. Imports no torch."""
