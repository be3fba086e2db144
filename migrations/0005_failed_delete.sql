-- When the end of an attempt's machine failed first. Rows from before it have none.
ALTER TABLE `attempts` ADD `delete_failed_at` integer;
