"""Pages: records in, text out; no arithmetic but scaling for drawing."""
