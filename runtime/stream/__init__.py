"""From lines to restored lines, in threads with bounded queues, with books that balance."""
