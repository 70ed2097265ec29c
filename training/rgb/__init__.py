"""Networks that restore photographs: what each learns, from which patches, and how it is judged."""
