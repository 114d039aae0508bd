"""The tools of a shop, one module for each part of the business."""
