"""`python -m recipe.export RUN out=FOLDER [key=value ...]`: an encoder in a form that other people's software loads, verified."""
