"""The remedies that come with gridmedic, one a file."""
