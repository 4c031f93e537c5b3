"""Files of X12 for the source `edi`: picked up from their places, taken apart, told as documents, and answered."""
