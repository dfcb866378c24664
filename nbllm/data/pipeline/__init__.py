"""The engine of data preparation: steps, the pipeline that runs them, and the record of what they removed."""
