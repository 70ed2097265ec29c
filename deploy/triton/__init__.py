"""Files that `deploy export-triton` copies into a model repository; nothing here is imported."""
