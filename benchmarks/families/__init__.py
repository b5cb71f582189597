"""What is measured, one file a family; each work on our side and on its peers'."""
