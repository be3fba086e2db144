-- TCP ports of a machine beside SSH, and how the world reaches them. Rows from before it have none: SSH alone.
ALTER TABLE `vms` ADD `ports` text;
