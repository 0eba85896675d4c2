"""Use of trained models: predictions, exports, approximate search."""
