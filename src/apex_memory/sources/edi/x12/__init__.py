"""The X12 standard (ASC X12, version 004010): segments, envelopes, element checks, field values, and the 997."""
