"""Other services beside this one."""
