"""What generated and real images are measured by."""
