"""At the line: the models that a site has used, labelling, adaptation, and predictions for whoever asks."""
