"""The process of a site that holds data, model and device, and how the ClientApp hands messages to it."""
