"""What everything else stands on: knows no strategy, no client, no app."""
