"""What an operator writes: typed, validated, diffable. Knows nothing of the other rooms."""
