"""What several tests use: a Hub on this machine, other interpreters, small rows and models."""
