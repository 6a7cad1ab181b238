"""Networks whose loss is mapped, and their Hessians by hand."""
