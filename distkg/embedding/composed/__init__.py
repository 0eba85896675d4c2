"""Entity vectors that are composed of tokens instead of stored (NodePiece)."""
