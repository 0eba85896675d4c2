"""Bridges to other libraries of the field; each requires that library."""
