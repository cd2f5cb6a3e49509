"""A page in the browser that shows the bridge at work: per layer, per reference, token by token (docs/app.md)."""
