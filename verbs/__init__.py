"""What each verb of the command line does: wiring between core and a backend, one file a verb."""
