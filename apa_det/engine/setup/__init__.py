"""From config files and the command line to a checked job."""
