"""What was found, shown: tables, the page, the model card, curves and pictures."""
