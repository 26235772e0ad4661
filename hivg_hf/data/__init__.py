"""Data: every annotation format to one schema, augmentation, collation, order, and the RefShapes generator."""
