-- TCP ports that an order asks for beside SSH. Rows from before it have none: SSH alone.
ALTER TABLE `payments` ADD `ports` text;
