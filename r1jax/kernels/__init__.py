"""The hot operations: a folder each, with a reference that specifies it and implementations picked by platform."""
