"""What everything else stands on: errors, configuration, files, reports. Imports no torch."""
